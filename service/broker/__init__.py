"""RabbitMQ: topology as data, one supervised connection, lanes in, confirmed publishes out."""
