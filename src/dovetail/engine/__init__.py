"""The engine as data: plan, memory plan, container file and trust."""
