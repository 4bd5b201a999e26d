"""edged: an inference daemon for edge gateways."""

__version__ = "0.1.0"
