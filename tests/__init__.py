"""Tests of both packages, and the real servers they run against."""
