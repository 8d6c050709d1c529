"""Speech for everybody's clients: an HTTP server that speaks as OpenAI's does.

    HTTP --guard, asked--> what is asked --voices--> Order --engine--> samples --formats--> HTTP

engine.py     orders -> samples: the thread that owns the model, its running batch, the queue
voices.py     names of voices and models -> adapters and references
formats.py    samples -> files, whole or as they come
asked.py      a request's body -> what is asked, or why not
guard.py      who may ask, how much and how slowly
metrics.py    what happened, in Prometheus's words
answers.py    samples -> HTTP answers: whole, in pieces, as events
app.py        the routes
server.py     the port, and its end in order
"""
