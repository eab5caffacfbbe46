"""Prints the JSON Schema of a subscriptions file: `python -m service.subscriptions`."""

import json
import sys

from service.subscriptions.schema import json_schema

sys.stdout.write(json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n")
