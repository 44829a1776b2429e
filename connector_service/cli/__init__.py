"""The ``connector-service`` command: thin commands over the layers below."""
