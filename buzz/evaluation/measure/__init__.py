"""What is measured of a batch, and what is made of it."""
