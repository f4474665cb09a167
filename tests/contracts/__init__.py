"""One suite a protocol, which runs against the real implementation and against the fakes of the tests."""
