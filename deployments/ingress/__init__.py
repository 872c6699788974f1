"""The HTTP API: the models of the cluster as ai-runner serves one, behind one address.

For people, who try a first request on `/docs`, and for go-livepeer, which takes a whole cluster
for one "external container" by the `url` of an aiModels.json entry.
"""
