"""What each conversion loses and what it saves, measured one site at a time, and the best mix under a budget."""
