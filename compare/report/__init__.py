"""The report of a comparison, in JSON, text, Markdown, HTML and JUnit XML."""
