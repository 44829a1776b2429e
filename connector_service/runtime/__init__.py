"""What happens to a call between the wire and a host: the policies, in one fixed order."""
