"""What the commands do, one module each; `service.cli` is the way in."""
