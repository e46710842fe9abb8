#!/bin/sh
# Runs the nvcc command that it is given and keeps, in OBJECT.ptxas beside the object, what the compilers said of it.
# Shows of it what is not -Xptxas -v's table of each kernel: scripts/kernel_resources.py reads that.
object=
previous=
for argument; do
  [ "$previous" = -o ] && object=$argument
  previous=$argument
done
if [ -z "$object" ]; then
  echo "keep_ptxas.sh: the command must have -o OBJECT, got: $*" >&2
  exit 2
fi
"$@" 2>"$object.ptxas"
status=$?
grep -v -E -e '^ptxas info +: +(Compiling entry|Function properties|Used [0-9]|Compile time|[0-9]+ bytes gmem)' \
  -e '^ +[0-9]+ bytes stack frame' "$object.ptxas" >&2
exit $status
