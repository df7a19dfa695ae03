"""The configuration: its schema, and all checks that need neither TensorFlow nor a training step."""
