#!/bin/sh
# Prints how many tests run at once: they wait for servers to start and for time to pass, so that one for
# each processor leaves a fifth of it idle.
n=$(getconf _NPROCESSORS_ONLN)
echo $((n + (n + 1) / 2))
