"""An image server that OpenAI's clients can talk to, and batch jobs.

A request goes from ``app`` (HTTP) as a ``protocol.ImageRequest`` to ``scheduler``, whose thread decodes its images in
lanes; ``painter`` turns tokens into files, and what there is to tell goes back as ``events``. A batch job gives the
lines of a file (``lines``) to the same scheduler (``batch``), and has its results on disk (``folder``). On a Ray
cluster there are schedulers in many processes: ``cluster`` for batches, ``replicas`` for the server. Under torchrun
processes hold a model together, and follow the scheduler of the first one (``shards``).
"""
