"""What surrounds the steps."""
