"""A new network from blocks of pretrained ones: repository, partition, routers, stitches, search (PA-DNN)."""
