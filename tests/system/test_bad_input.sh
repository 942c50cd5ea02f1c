#!/usr/bin/env bash
# Every kind of bad input ends with one clear line from one rank, the right exit code, no hang, and nothing half-written.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
patience=60

golden=$BW_TEST_DATA/golden/tiny
rows 12 >rows.jsonl
"$BW_MAKE_TINY" tiny 1

whole_outputs() { # what stands in an output folder is there whole, or not at all
  local left
  left=$(find . -path './kept*' -prune -o \( -name '*.tmp*' -o -path './result*/adapter*' -o -name summary.json -o -name merge.csv \) -print)
  [ -z "$left" ] || fail "left behind after: $case: $left"
}

# Each case runs on two ranks; `$case` is its name for the messages.
case=""
bad() { # NAME CODE PATTERN argument...
  case=$1
  rm -rf result
  # mpiexec waits so many seconds for the other ranks before it kills them. What fails after MPI has started has been said by then.
  local -x OMPI_MCA_odls_base_sigkill_timeout=1
  [ "$4" != train ] || [ "$2" = 64 ] || OMPI_MCA_odls_base_sigkill_timeout=0
  expect_fail "$2" "$3" 2 "${@:4}"
  whole_outputs
}
usual() { # option...: training on the golden model, where the options do not say otherwise; a command, in `training`
  local defaults=(--stage sft --template plain --steps 2 --lora-r 4 --model "$golden/model" --data rows.jsonl --output result) i
  training=(train "$@")
  for ((i = 0; i < ${#defaults[@]}; i += 2)); do
    [[ " $* " = *" ${defaults[i]} "* ]] || training+=("${defaults[@]:i:2}")
  done
}
train() { # NAME CODE PATTERN option...
  usual "${@:4}"
  bad "$1" "$2" "$3" "${training[@]}"
}
with_data() { # NAME PATTERN: the data set is standard input
  cat >bad.jsonl
  train "$1" 65 "bad\.jsonl.*$2" --data bad.jsonl --on-unsupervised error
}
copy_model() { # a copy that may be damaged
  rm -rf bad-model
  cp -r "$golden/model" bad-model
  chmod -R u+w bad-model
}
copy_adapter() {
  rm -rf bad-adapter
  cp -r "$golden/init" bad-adapter
  chmod -R u+w bad-adapter
}
overwrite() { # FILE OFFSET: bytes from standard input; a negative offset counts from the end
  local at=$2
  [ "$at" -ge 0 ] || at=$(($(stat -c %s "$1") + at))
  dd of="$1" bs=1 seek="$at" conv=notrunc status=none
}
u32() { printf "\\x$(printf %02x $(($1 & 255)))\\x$(printf %02x $((($1 >> 8) & 255)))\\x$(printf %02x $((($1 >> 16) & 255)))\\x$(printf %02x $((($1 >> 24) & 255)))"; }
u64() { u32 "$1" && u32 0; }
text() { u64 ${#1} && printf '%s' "$1"; }
zeros() { head -c "$1" /dev/zero; }
safetensors() { u64 ${#1} && printf '%s' "$1"; } # HEADER; the data follow
gguf_tensor() { text "$1" && u32 1 && u64 8 && u32 0 && u64 "$2"; } # eight F32 at an offset

note "files that are missing or unreadable"
train "no such model" 66 "no-model" --model no-model
train "no such data" 66 "no-rows\.jsonl" --data no-rows.jsonl
train "no such adapter" 66 "no-adapter" --init-adapter no-adapter
train "no such BufferLoRA" 66 "no-buffer" --stage user --buffer no-buffer
train "data that is a folder" "6[56]" "tiny" --data tiny
bad "no such pipeline" 66 "no\.yaml" run no.yaml
bad "no such rows to evaluate" 66 "no-harm\.jsonl" eval --model tiny --harmful no-harm.jsonl --output result
bad "no such UserLoRA" 66 "no-user" merge --model tiny --user no-user --method user --output result
copy_model && rm bad-model/tokenizer.json
train "no tokenizer" 66 "bad-model/tokenizer\.json" --model bad-model
copy_model && rm bad-model/model.safetensors
train "no weights" 66 "bad-model" --model bad-model
mkdir -p nothing
train "a model folder with nothing in it" 66 "nothing/config\.json" --model nothing
if [ "$(id -u)" -ne 0 ]; then
  copy_model && chmod 0 bad-model/model.safetensors
  train "a model that may not be read" 66 "bad-model" --model bad-model
fi

note "files that are cut off or damaged"
copy_model && truncate -s 100000 bad-model/model.safetensors
train "safetensors cut off in its data" 65 "bad-model/model\.safetensors" --model bad-model
copy_model && truncate -s 100 bad-model/model.safetensors
train "safetensors cut off in its header" 65 "bad-model/model\.safetensors" --model bad-model
copy_model && truncate -s 3 bad-model/model.safetensors
train "safetensors of three bytes" 65 "bad-model/model\.safetensors" --model bad-model
copy_model && truncate -s 300 bad-model/config.json
train "config.json cut off" 65 "bad-model/config\.json: line [0-9]+" --model bad-model
copy_model && truncate -s 2000 bad-model/tokenizer.json
train "tokenizer.json cut off" 65 "bad-model/tokenizer\.json: line [0-9]+" --model bad-model
copy_adapter && truncate -s 9000 bad-adapter/adapter_model.safetensors
train "an adapter cut off" 65 "bad-adapter/adapter_model\.safetensors" --init-adapter bad-adapter
{ printf GGUF && u32 3 && u64 2 && u64 1 && text general.architecture && u32 8 && text llama && gguf_tensor a 0; } >cut.gguf
train "GGUF cut off in its header" 65 "cut\.gguf: byte [0-9]+" --model cut.gguf
{ cat cut.gguf && gguf_tensor b 32 && zeros 40; } >short.gguf
train "GGUF cut off in its data" 65 "short\.gguf: tensor (a|b)" --model short.gguf
if [ -n "${BW_MODEL:-}" ] && [[ $BW_MODEL = *.gguf ]]; then
  head -c 30000000 "$BW_MODEL" >half.gguf
  train "a real GGUF cut off" 65 "half\.gguf: tensor" --model half.gguf
  rm half.gguf
fi
usual --output kept
run 1 "${training[@]}"
head -c 5000 kept/checkpoints/step-000002.h5 >cut.h5
train "HDF5 cut off" 65 "cut\.h5" --resume cut.h5
cp rows.jsonl not.h5
train "a checkpoint that is no HDF5" 65 "not\.h5" --resume not.h5

note "tensors"
tensor=model.layers.1.mlp.up_proj.weight
fault() { # FAULT PATTERN
  rm -rf faulty && "$BW_MAKE_TINY" faulty 1 "$1"
  train "$1" 65 "$2" --model faulty
}
fault omit=$tensor "$tensor is missing"
fault omit=model.norm.weight "model.norm.weight is missing"
fault misshape=$tensor "$tensor is .*49.*48"
fault surplus=model.layers.0.mlp.extra.weight "model.layers.0.mlp.extra.weight does not belong"
fault poison=$tensor "$tensor holds -?nan at row 0, column 5"
fault poison=model.embed_tokens.weight "model.embed_tokens.weight holds -?nan at row 0, column 5"
fault architecture=MambaForCausalLM "MambaForCausalLM"
fault 'config="attention_bias": true,' "attention_bias"
copy_model && sed -i 's/"F32"/"I32"/' bad-model/model.safetensors
train "a type that no weight has" 65 "I32" --model bad-model
rm -rf odd && cp -r tiny odd && chmod -R u+w odd
{ safetensors '{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"b":{"dtype":"F32","shape":[4],"data_offsets":[8,24]}}' && zeros 24; } >odd/model.safetensors
train "safetensors whose tensors overlap" 65 "odd/model\.safetensors.*tensors? '?(a|b)" --model odd
{ safetensors '{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"b":{"dtype":"F32","shape":[4],"data_offsets":[16,32]}}' && zeros 20; } >odd/model.safetensors
train "a tensor that lies outside of its file" 65 "odd/model\.safetensors.*tensor '?b" --model odd
{ safetensors '{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}' && zeros 16; } >odd/model.safetensors
train "a shape that overflows" 65 "odd/model\.safetensors.*tensor '?a" --model odd
head='GGUF' && { printf $head && u32 3 && u64 2 && u64 1 && text general.architecture && u32 8 && text llama && gguf_tensor a 0 && gguf_tensor b 0 && zeros 100; } >overlap.gguf
train "GGUF whose tensors overlap" 65 "overlap\.gguf.*tensors? '?(a|b)" --model overlap.gguf
{ printf GGUF && u32 3 && u64 0 && u64 1 && text general.architecture && u32 8 && text mamba; } >mamba.gguf
train "GGUF of another architecture" 65 "mamba" --model mamba.gguf

note "adapters"
copy_adapter && mv bad-adapter/adapter_model.safetensors bad-adapter/adapter_model.bin
train "a pickle" 65 "adapter_model\.bin.*pickle" --init-adapter bad-adapter
bad "a pickle to merge" 65 "adapter_model\.bin.*pickle" merge --model "$golden/model" --user bad-adapter --method user --output result
copy_adapter && sed -i 's/"use_dora": false/"use_dora": true/' bad-adapter/adapter_config.json
train "DoRA" 65 "use_dora" --init-adapter bad-adapter
copy_adapter && sed -i 's/"bias": "none"/"bias": "all"/' bad-adapter/adapter_config.json
train "an adapter with biases" 65 "bias" --init-adapter bad-adapter
train "an adapter for another model" 65 "tensor .*(another model|expect)" --model tiny --init-adapter "$golden/init"
bad "an adapter for another model to evaluate" 65 "tensor .*(another model|expect)" \
  eval --model tiny --adapter "$golden/init" --task rows.jsonl --template plain --output result
copy_adapter && printf '\000\000\300\177' | overwrite bad-adapter/adapter_model.safetensors -4
train "an adapter with a NaN" 65 "tensor .*lora_.*holds -?nan" --init-adapter bad-adapter
copy_adapter && printf '\000\000\200\177' | overwrite bad-adapter/adapter_model.safetensors -4
train "an adapter with an infinity" 65 "tensor .*lora_.*holds inf" --init-adapter bad-adapter
train "an adapter that is no BufferLoRA" 65 "sft.*not a BufferLoRA" --stage user --buffer kept/adapter

note "a loss that is no number"
copy_model
for ((i = 0; i < 512; i++)); do printf '\377\377\177\177'; done | overwrite bad-model/model.safetensors -2048 # the largest floats
train "a NaN loss" 65 "loss is not finite.*rows\.jsonl, line [0-9]+" --model bad-model

note "data"
with_data "an empty data file" "empty|no row" </dev/null
printf '\n\n  \n' | with_data "blank lines" "empty|no row"
printf '%s\n{"instruction": "a\xff", "output": "b"}\n' "$(rows 2)" | with_data "not UTF-8" "line 3|:3"
printf '%s\n{"instruction": "a", "output": \n' "$(rows 3)" | with_data "a line cut off" "line 4|:4"
printf '%s\n{"instruction": "a", "answer": "b"}\n' "$(rows 1)" | with_data "a wrong key" "line 2|:2"
printf '{"instruction": "a", "output": 7}\n' | with_data "an answer that is a number" "(line |:)1.*string"
train "a model as data" 65 "model\.safetensors: this is no text: it holds zero bytes; expected a JSON array of rows" --data "$golden/model/model.safetensors"
printf '[{"instruction": "a", "output": "b"},' | with_data "an array cut off" ":1|line 1"
printf '{"instruction": "a", "instruction": "c", "output": "b"}\n' | with_data "a key twice" "line 1|:1"
printf '%s\nno JSON\n{"instruction": "a\xff", "output": "b"}\n{"question": "a"}\n' "$(rows 3)" >bad.jsonl
usual --data bad.jsonl --on-unsupervised drop
run 2 "${training[@]}"
for line in 4 5 6; do
  grep -q "warning: .*bad\.jsonl: line $line.*left out" "$work/err" || fail "the dropped row of line $line is not named"
done
grep -q "rows left out: 3" "$work/out" || fail "the dropped rows are not counted"
rm -rf result
train "rows too long for max-length" 65 "rows\.jsonl.*max_length" --max-length 4
train "rows too long, and that is an error" 65 "line 1.*max_length" --max-length 4 --on-unsupervised error

note "output that cannot be written"
echo x >in-the-way
train "a file where the output folder belongs" 73 "in-the-way" --output in-the-way
train "a folder below a file" 73 "in-the-way" --output in-the-way/out
case="metrics that somebody else made"
rm -rf result && mkdir result && ln -s /dev/full result/metrics.jsonl
usual
expect_fail 73 "result/metrics\.jsonl: was not made" 2 "${training[@]}"
case="metrics that are a device"
rm -rf result
run 2 "${training[@]}"
rm -r result/adapter result/metrics.jsonl && ln -s /dev/full result/metrics.jsonl
expect_fail 66 "result/metrics\.jsonl: a device" 2 "${training[@]}"
whole_outputs
mkdir disk
if mount -t tmpfs -o size=6m tmpfs disk 2>/dev/null; then
  mounted=$work/disk
  usual --lora-r 64 --output disk/result
  for leave_free in 0 64 4500; do # KiB: no room, room for the settings, almost room for a checkpoint
    rm -rf disk/* && head -c $(((6144 - leave_free) * 1024)) /dev/zero >disk/ballast || true
    case="a full disk with $leave_free KiB"
    begin 2 "${training[@]}"
    end
    [[ $status = 7[34] ]] || fail "$case: exit code $status"
    [ "$(grep -c '^breakwater: error: .*disk/result' err)" -eq 1 ] || fail "$case: not one line that names the file"
    [ -z "$(find disk/result \( -name '*.tmp*' -o -name '*.h5' -o -name adapter_model.safetensors \) 2>/dev/null)" ] || fail "$case: half-written: $(find disk/result)"
  done
  rm disk/ballast
  run 2 "${training[@]}"
  umount disk && mounted=""
else
  note "(no permission to mount a small disk: a full disk was not tried)"
fi

note "folders of something else"
kept() { # NAME CODE PATTERN option...
  case=$1
  sha256sum kept/adapter/* kept/checkpoints/* kept/config.yaml kept/metrics.jsonl >before
  usual --output kept "${@:4}"
  expect_fail "$2" "$3" 2 "${training[@]}"
  sha256sum kept/adapter/* kept/checkpoints/* kept/config.yaml kept/metrics.jsonl | cmp -s - before || fail "$case: the folder was changed"
}
kept "another configuration" 73 "lr: 1e-05, this run 0\.001" --lr 1e-3
kept "another model" 73 "kept.*model" --model tiny
rows 13 >other.jsonl
kept "other data" 73 "kept.*data" --data other.jsonl
mv kept/adapter kept-adapter && mkdir kept/adapter && touch kept/adapter/not-an-adapter # as if it had stopped before the end
rm -rf twin && cp -r "$golden/model" twin && chmod -R u+w twin && printf '\000\000\200\077' | overwrite twin/model.safetensors -4
kept "a checkpoint of another model" 73 "step-000002\.h5.*another model.*[0-9a-f]{32}.*[0-9a-f]{32}" --model twin
kept "a checkpoint of other data" 73 "step-000002\.h5.*another data.*[0-9a-f]{32}.*[0-9a-f]{32}" --data other.jsonl
rm -r kept/adapter && mv kept-adapter kept/adapter
bad "a merge into a folder of something else" 73 "kept" merge --model "$golden/model" --user kept/adapter --method user --output kept
bad "an evaluation into a folder of something else" 73 "kept" eval --model "$golden/model" --task rows.jsonl --template plain --max-new 2 --output kept

note "the command line and the YAML file"
train "an unknown option" 64 "lora-rank.*lora-r" --lora-rank 4
train "a value out of range" 64 "lora-r" --lora-r 0
train "a value that is no number" 64 "steps" --steps many
printf '%s\n' '{"instruction": "a", "output": "b"}' '{"instruction": "c", "output": " "}' '{"instruction": "", "output": "d"}' >empty.jsonl
run 1 train --stage sft --model "$golden/model" --template plain --data empty.jsonl --steps 1 --lora-r 4 --output empty
warnings | grep -q 'empty.jsonl: 2 rows have an empty instruction or answer .*: line 2, 3$' || fail "rows that say nothing pass without a word"
warnings | grep -q 'the learning rate is 0 in every step: nothing is learned' || fail "a run that learns nothing passes without a word"
grep -q ' 1 step of 8 rows in 1 micro-batch$' out || fail "one is not counted as one"
train "an unknown choice" 64 "schedule.*cosine" --schedule cosin
train "another shape than the first adapter has" 64 "--lora-r: --init-adapter .*/init has r [0-9]+" --init-adapter "$golden/init" --lora-r 5
expect_fail 64 "grid 3x3 .* does not fit one rank: start more ranks, or leave --grid and --replicas out$" 1 train --stage sft \
  --model "$golden/model" --data rows.jsonl --output grid --grid 3x3
train "a grid of more ranks than there are" 64 "grid 2x2.*2 rank" --grid 2x2
train "replicas that do not divide the ranks" 64 "3 replica.*2 rank" --replicas 3
train "a stage without its BufferLoRA" 64 "buffer" --stage user
bad "an unknown command" 64 "trian.*train" trian
expect_fail 64 "unknown option '--verson'\. Did you mean '--version'\?" 0 --verson
bad "no model" 64 "model" train --stage sft --data rows.jsonl --output result
bad "a merge without a ReinforceLoRA" 64 "reinforce" merge --model tiny --user kept/adapter --output result
bad "nothing to evaluate" 64 "harmful" eval --model tiny --output result
printf 'stage: sft\nlora-rr: 4\n' >options.yaml
train "an unknown key in --config" 64 "options\.yaml:2: lora-rr.*lora-r" --config options.yaml
pipeline() { # NAME CODE PATTERN
  cat >p.yaml
  bad "$1" "$2" "$3" run p.yaml --output result
}
pipeline "an unknown key in a pipeline" 64 "p\.yaml:6: .*epoch.*epochs" <<'END'
model: tiny
stages:
  - name: a
    command: train
    stage: sft
    epoch: 1
    data: rows.jsonl
END
pipeline "a stage that is not there" 64 "p\.yaml:5: .*@b" <<'END'
model: tiny
stages:
  - name: a
    command: eval
    adapter: "@b/adapter"
    task: rows.jsonl
END
pipeline "YAML that is none" "6[45]" "p\.yaml:[0-9]+" <<'END'
model: [tiny
stages: }
END

note "the commands that only look"
bad "inspect of nothing" 66 "no-file" inspect no-file
bad "inspect of an output folder" 65 "did you mean kept/adapter" inspect kept
mkdir begun && cp kept/config.yaml begun
bad "inspect of an output folder that was begun" 65 "none yet" inspect begun
bad "inspect of settings" 64 "show stages" inspect kept/config.yaml
bad "verify of a poisoned model" 65 "embed_tokens.*nan" verify "$(rm -rf faulty && "$BW_MAKE_TINY" faulty 1 poison=model.embed_tokens.weight && echo faulty)"
bad "inspect of a folder of something" 65 "disk" inspect disk
note "done"
