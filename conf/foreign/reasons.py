"""Names of what is wrong with foreign content, where more than one process says them."""

REFUSES = "chat_template_refuses"
LIMITS = "chat_template_limits"
