"""Shipped conformance suites: subclass one in your own tests to check your store or transport.

They need pytest, and nothing else in the package imports them.
"""
