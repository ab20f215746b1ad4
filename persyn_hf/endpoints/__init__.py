"""One way to speak HTTP: for teachers, judges, remote students and routers behind a server."""
