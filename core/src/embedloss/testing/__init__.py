"""What plugin authors run: the conformance kit, and tiny models for their own tests."""
