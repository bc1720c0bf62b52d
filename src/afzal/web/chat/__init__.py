"""``afzal chat``: a conversation with one or two models, and blind votes on their answers."""
