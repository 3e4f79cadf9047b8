"""Gateway between a PACS and the app: receives studies, runs the app, sends the results back."""
