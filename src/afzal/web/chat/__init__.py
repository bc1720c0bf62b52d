"""``afzal chat``: a conversation with one model or two, and blind votes on their answers."""
