"""llama.cpp's own server on a GGUF file: llama_server.py FILE PORT [SLOTS] [CONTEXT OF A SLOT]"""
import sys
import threading

import xllamacpp

arguments = sys.argv[1:] + ["8", "512"][len(sys.argv) - 3:]
file, port, slots, context = arguments[0], int(arguments[1]), int(arguments[2]), int(arguments[3])
params = xllamacpp.CommonParams()
params.model.path = file
params.model_alias = {"tiny-chat"}
params.port = port
params.n_parallel = slots
params.n_ctx = slots * context
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.use_jinja = True
server = xllamacpp.Server(params)
print("listening at", server.listening_address, flush=True)
threading.Event().wait()
