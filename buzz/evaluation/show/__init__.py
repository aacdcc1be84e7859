"""What is shown of a run: tables, pictures, the report, tracking."""
