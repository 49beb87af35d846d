"""The main job against servers that others wrote, installed from the package index and started by the tests."""
