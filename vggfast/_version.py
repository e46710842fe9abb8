"""The version, which pyproject.toml and CMakeLists.txt read from here."""

__version__ = "0.1.0"
