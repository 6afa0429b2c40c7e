"""Other projects' ways to sum, timed beside ours: one script for each, which knows nothing of this package.

Rules:

1. A script runs in a process of its own, in the environment where its project is installed, takes its sizes as one
   JSON argument and prints one JSON object: version, CPU seconds of one client and of the server, bytes of an upload.
2. It calls the project's own functions with the project's own parameters, and compares the result with the plain sum.
3. What was not run is reported as such, with the reason.
"""
