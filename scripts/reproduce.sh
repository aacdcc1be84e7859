#!/usr/bin/env bash
# The evaluation of docs/results.md on one GPU: every task with all methods, at the cache length of BUZZ at a reduction
# of 2.5. Started again, everything goes on where it stopped. About fifteen processes share the GPU, since a decode step
# of a small model waits for Python, not for the GPU.
#   scripts/reproduce.sh MODEL.gguf DATA_FOLDER OUTPUT_FOLDER [key.sub=value ...]
# DATA_FOLDER holds xsum.jsonl.gz, cnn_dailymail.jsonl.gz, nq_open_10.jsonl.gz and wikitext2_validation.txt.gz.
# Paths have no blanks. PYTHON picks the interpreter, TASKS="xsum wikitext" some of the tasks.
set -euo pipefail
(($# >= 3)) || { sed -n '2,/^set/{/^#/p}' "$0" >&2; exit 2; }
model=$(realpath -m "$1") data=$(realpath -m "$2") out=$(realpath -m "$3")
shift 3
extra=("$@")
for file in "$model" "$data"/{xsum,cnn_dailymail,nq_open_10}.jsonl.gz "$data/wikitext2_validation.txt.gz"; do
  [[ -r $file ]] || { echo "error: $file: cannot be read" >&2; exit 2; }
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=1 TOKENIZERS_PARALLELISM=false PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
mkdir -p "$out/parts" "$out/logs"

# The keys of each task: rows as in docs/results.md, batches that leave room for all processes in 140 GiB.
declare -A keys=(
  [xsum]="task.data=$data/xsum.jsonl.gz task.limit=300 batch_size=75"
  [cnn_dm]="task.data=$data/cnn_dailymail.jsonl.gz task.limit=300 batch_size=75"
  [ten_qa]="task.data=$data/nq_open_10.jsonl.gz task.limit=null batch_size=67"
  [wikitext]="task.data=$data/wikitext2_validation.txt.gz task.limit=null batch_size=64"
  [passkey]="batch_size=75"
)

evaluate() { # task, folder, further arguments
  local task=$1 folder=$2
  shift 2
  # shellcheck disable=SC2086  # the keys are words
  "${PYTHON:-python3}" scripts/run_eval.py "configs/$task.yaml" ${keys[$task]} model.gguf="$model" \
    model.dtype=float32 hive=0 output="$folder" ${extra[@]+"${extra[@]}"} "$@" >>"$out/logs/$(basename "$folder").txt" 2>&1
}

buzz="{name: buzz, policy: buzz, reduction: 2.5}"
matched() { # methods at the cache length of buzz, as a list without its brackets
  local list="" name
  for name in "$@"; do
    if [[ $name == full ]]; then list+=", full"; else list+=", {name: $name, policy: $name, match: buzz}"; fi
  done
  echo "$list"
}

copy_samples() { # from one run folder to another, which keeps what it has
  local file
  mkdir -p "$2/samples"
  for file in "$1/samples/"*.jsonl; do
    [[ -e $2/samples/$(basename "$file") ]] || cp "$file" "$2/samples/"
  done
}

# A task in parts: what the other methods are compared and matched with first, then groups of methods side by side, each
# with those samples in place; then one folder with all samples, which is complete, so that nothing runs again.
task() { # task, methods of the first part, groups of methods
  local name=$1 first=$2 i part jobs=() again=()
  shift 2
  evaluate "$name" "$out/parts/$name-0" methods="[$first]" || { echo "error: $name: see $out/logs/$name-0.txt" >&2; return 1; }
  for ((i = 1; i <= $#; i++)); do
    copy_samples "$out/parts/$name-0" "$out/parts/$name-$i"
    # shellcheck disable=SC2086  # the methods are words
    evaluate "$name" "$out/parts/$name-$i" methods="[$first$(matched ${!i})]" &
    jobs[i]=$!
  done
  for i in "${!jobs[@]}"; do wait "${jobs[i]}" || again+=("$i"); done
  for i in ${again[@]+"${again[@]}"}; do # the GPU's memory was full, perhaps; there is more of it now
    # shellcheck disable=SC2086
    evaluate "$name" "$out/parts/$name-$i" methods="[$first$(matched ${!i})]" ||
      { echo "error: $name: see $out/logs/$name-$i.txt" >&2; return 1; }
  done
  for part in "$out/parts/$name"-*; do copy_samples "$part" "$out/$name"; done
  evaluate "$name" "$out/$name"
  cp "$out/parts/$name-0/environment.json" "$out/$name/"
  echo "$name: done"
}

wanted=" ${TASKS:-xsum cnn_dm ten_qa wikitext passkey} "
for name in $wanted; do
  [[ -v keys[$name] ]] || { echo "error: TASKS: $name is none of ${!keys[*]}" >&2; exit 2; }
done
start() { [[ $wanted != *" $1 "* ]] || task "$@" & } # in the background
start xsum "full, $buzz" "streaming h2o random" "snapkv tova buzz_no_max" "pyramidkv buzz_fast"
start cnn_dm "full, $buzz" "streaming h2o random" "snapkv tova buzz_no_max" "pyramidkv buzz_fast"
start ten_qa "full, $buzz" "streaming h2o random buzz_no_max" "snapkv tova pyramidkv buzz_fast"
start wikitext "$buzz" full streaming h2o tova random buzz_no_max buzz_fast
start passkey "full, $buzz" "streaming h2o snapkv tova pyramidkv random buzz_no_max buzz_fast"
status=0
for job in $(jobs -p); do wait "$job" || status=1; done
exit $status
