"""The programs on top of the plugin."""
