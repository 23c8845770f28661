"""A Work Queue manager as a program of its own, for Debian's Python, which has the module.

Reads a list of tasks as JSON from the file named on the command line.  Prints its port, then
one JSON line for each task that ends.  Runs until it is ended, at most 120 seconds.

A task is ``{"command": ..., "inputs": {name in the sandbox: path here}}`` with, if wanted,
``"seconds"`` (its run-time limit) and ``"cancel_when"`` (a path: cancelled once that exists);
or a PythonTask, ``{"function": source, "args": [...], "environment": path, "tool": name}``.
"""

import json
import os
import shutil
import signal
import sys
import time

import work_queue


def make(description):
    """The Work Queue task for one description."""
    if "function" in description:
        task = work_queue.PythonTask(eval(description["function"]), *description["args"])
        # 9.9 looks for python_package_run, later releases for poncho_package_run; the command
        # line that follows the name is the same in both.
        found = shutil.which(description["tool"])
        work_queue.shutil.which = lambda _name: found
        task.specify_environment(description["environment"])
    else:
        task = work_queue.Task(description["command"])
    for remote, local in description.get("inputs", {}).items():
        task.specify_input_file(local, remote, cache=True)
    task.specify_cores(1)
    task.specify_memory(100)
    task.specify_disk(100)
    if "seconds" in description:
        task.specify_running_time_max(description["seconds"])
    return task


def main():
    """Submit everything, then report until somebody ends us."""
    signal.alarm(120)
    with open(sys.argv[1]) as file:
        descriptions = json.load(file)
    queue = work_queue.WorkQueue(port=0)
    print(queue.port, flush=True)
    tasks = {queue.submit(make(each)): each for each in descriptions}
    while True:
        task = queue.wait(1)
        if task is not None:
            is_python = isinstance(task, work_queue.PythonTask)
            report = {
                "number": descriptions.index(tasks[task.id]),
                "status": task.return_status,
                "result": task.result_str,
                "output": task.std_output if is_python else task.output,
                "value": repr(task.output) if is_python else None,
            }
            print(json.dumps(report), flush=True)
            del tasks[task.id]
        for number, each in list(tasks.items()):
            if os.path.exists(each.get("cancel_when", "")):
                queue.cancel_by_taskid(number)
                del tasks[number]
        time.sleep(0.05)


main()
