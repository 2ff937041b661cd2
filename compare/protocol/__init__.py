"""The protocol between a comparison and the processes of its sides."""
