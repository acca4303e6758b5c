"""Third-party projects: their tests run where they are installed (tests/host/test_install.py)."""

collect_ignore_glob = ["*"]
