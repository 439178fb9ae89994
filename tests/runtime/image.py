#!/usr/bin/env python3
"""image.py NAME PROGRAM OUT: an OCI image of one static program, as a tar that `ctr image import` takes."""
import hashlib, io, json, sys, tarfile

name, program, out = sys.argv[1:]


def packed(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, content in files:
            info = tarfile.TarInfo(path)
            info.size, info.mode = len(content), 0o755
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


blobs = {}


def blob(content, kind):
    digest = hashlib.sha256(content).hexdigest()
    blobs[digest] = content
    return {"mediaType": kind, "digest": "sha256:" + digest, "size": len(content)}


layer = packed([("main", open(program, "rb").read())])
config = {
    "architecture": "amd64",
    "os": "linux",
    "config": {"Entrypoint": ["/main"]},
    "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]},
}
manifest = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "config": blob(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
    "layers": [blob(layer, "application/vnd.oci.image.layer.v1.tar")],
}
described = blob(json.dumps(manifest).encode(), manifest["mediaType"])
described["annotations"] = {"io.containerd.image.name": name}
files = [("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')]
files.append(("index.json", json.dumps({"schemaVersion": 2, "manifests": [described]}).encode()))
files += [("blobs/sha256/" + digest, content) for digest, content in blobs.items()]
open(out, "wb").write(packed(files))
