"""The configuration: its schema, and every check that needs neither TensorFlow nor a training step."""
