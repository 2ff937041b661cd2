"""Models, folders and checks that several tests share. Tests import them as `support.name`: pytest puts tests/ on the path."""
