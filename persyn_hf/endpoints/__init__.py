"""HTTP requests to teachers, judges, remote students and routers behind a server."""
