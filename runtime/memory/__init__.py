"""Memory that native code shares: mapped weights, the files that a graph names, calls that outlive the interpreter."""
