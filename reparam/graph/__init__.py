"""Graph to see, modules to change: find sites on the recorded operations, plan, rewrite modules, verify."""
