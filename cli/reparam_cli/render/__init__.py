"""What people read: the only place that knows Rich. Views are built from records and do no work of their own."""
