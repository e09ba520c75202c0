"""The pytest plugin: audits as tests."""
