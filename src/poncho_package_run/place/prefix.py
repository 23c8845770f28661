"""interim"""
import os


def find_prefix(directory):
    names = [os.fsencode(n) for n in os.listdir(directory)]
    if {b"conda-meta", b"pyvenv.cfg"} & set(names): return b""
    try:
        os.lstat(b"bin/activate", dir_fd=directory); return b""
    except OSError: pass
    names=[n for n in names if not n.startswith(b".poncho_package_run")]
    if len(names)==1:
        try: h=os.open(names[0], os.O_RDONLY|os.O_DIRECTORY|os.O_NOFOLLOW, dir_fd=directory)
        except OSError: return None
        try:
            r=find_prefix(h)
        finally: os.close(h)
        return None if r is None else names[0]+(b"/"+r if r else b"")
    return None
