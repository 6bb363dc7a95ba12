"""What is known of a cluster: a pure function of events, readings and the time they came."""
