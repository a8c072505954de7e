"""Pictures and pages made from what runs leave behind."""
