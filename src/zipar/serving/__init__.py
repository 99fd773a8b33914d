"""An image server that OpenAI's clients can talk to.

A request goes from ``app`` (HTTP) as a ``protocol.ImageRequest`` to ``scheduler``, whose thread decodes its images in
lanes; ``painter`` turns tokens into files, and what there is to tell goes back as ``events``.
"""
