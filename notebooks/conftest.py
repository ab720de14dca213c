import tests.environment  # noqa: F401
