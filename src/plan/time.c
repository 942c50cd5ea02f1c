/* plan/time.c - the time of a step, from a machine's rates and latencies. Every formula is one function with its reasoning; benchmarks/plan.sh
 * holds them against real runs. */
#include "breakwater/plan.h"
#include <math.h>
#include <string.h>

/* Shares of the machine's GEMM rate, measured by breakwater bench on AMD Zen 3 and Zen 4: thin products of a LoRA (r 32), and attention, whose blocks
 * are small and whose exponentials are not counted as work. */
static const double lora_share = 0.85, attention_share = 0.60;
/* Of what compute moves, the share that comes from memory: the rest is still in a cache when the next loop reads it. From the steps of three models
 * on the same machines (docs/scaling.md). */
static const double memory_share = 0.5;
/* Between ranks of one node a small message costs about this (Open MPI over shared memory). */
static const double node_latency = 1e-6;

static double fmax0(double x)
{
    return x > 0 ? x : 0;
}

/* ---- compute ------------------------------------------------------------------------------------------------------- */
static double core_flops(const bw_machine *machine, int threads)
{
    return machine->gemm_gflops * 1e9 * threads;
}

/* Cores of a node share its memory evenly. */
static double core_bytes(const bw_machine *machine, int threads)
{
    return machine->memory_gbs * 1e9 * threads / (double)machine->cores;
}

/* Some threads of each rank at work, where weights are unpacked all, where gradients are summed one: beside idle cores a core draws about twice its
 * even share. */
static double rank_bytes(const bw_machine *machine, const bw_grid *grid, int threads)
{
    return fmin(2 * core_bytes(machine, threads), machine->memory_gbs * 1e9 / grid->node_size);
}

/* Products run at the GEMM rate, or at their share of it; products that are not asked for are not computed. */
static double work_seconds(const bw_work *work, double rate)
{
    return (work->weights + work->head + work->lora / lora_share + work->attention / attention_share) / rate;
}

/* Floats that a token moves through memory in one layer, forward and backward, as model/block.c does it. Products read their input and write
 * their output; a target with a LoRA adds two thin ones; dropout writes a copy forward, once more backward, and a masked gradient that is added. */
static double target_floats(double out, double in, bool trained, bool drops)
{
    const double plain = (in + out) + (out + 2 * in);
    const double thin = trained ? (in + 2 * out) + (2 * out + 3 * in) : 0;
    const double masks = trained && drops ? 2 * in + 2 * in + 5 * in : 0;
    return plain + thin + masks;
}

/* Norms (4 C forward, 8 C backward), the residual stream's copies (4 C), rotary embeddings (4 a head row), attention's own reads and writes
 * (about 10), SwiGLU (3 F forward, 5 F backward). */
static double token_floats(const bw_spec *spec, const bw_adapter *adapter, bool drops)
{
    const double rows = (double)spec->head_dim * (2 * spec->n_head + 2 * spec->n_kv);
    double floats = 16.0 * (double)spec->d_model + 14.0 * rows + 8.0 * (double)spec->d_ff;
    for (int target = 0; target < BW_TARGETS; target++) {
        int64_t out, in;
        bw_spec_shape(spec, (bw_target)target, &out, &in);
        floats += target_floats((double)out, (double)in, bw_adapter_pair(adapter, 0, (bw_target)target) != NULL, drops);
    }
    return floats * spec->n_layer;
}

/* What a micro-batch moves however few tokens it has: every weight is read, packed and read again, forward and backward; the head twice. */
static double fixed_floats(const bw_spec *spec)
{
    const double weights = (double)bw_store_layer_bytes(spec) / sizeof(float) * spec->n_layer;
    const double head = (double)spec->vocab * (double)spec->d_model;
    return 2 * 3 * weights + 2 * 3 * head;
}

static bw_work work_of(const bw_spec *spec, const bw_adapter *adapter, const bw_batch *batch, bool recompute)
{
    bw_work work = bw_transformer_work(spec, adapter, batch, true);
    if (recompute) { /* the layers once more, not the head */
        const bw_work again = bw_transformer_work(spec, adapter, batch, false);
        work.weights += again.weights, work.attention += again.attention, work.lora += again.lora;
    }
    return work;
}

double bw_compute_seconds(const bw_machine *machine, int threads, const bw_spec *spec, const bw_adapter *adapter, const bw_batch *batch,
                          const bw_config *config)
{
    if (batch->T == 0)
        return 0;
    const bool recompute = strcmp(config->recompute, "layer") == 0;
    const bw_work work = work_of(spec, adapter, batch, recompute);
    double floats = token_floats(spec, adapter, config->lora_dropout > 0) * (double)batch->T * (recompute ? 4.0 / 3 : 1);
    floats += fixed_floats(spec);
    return work_seconds(&work, core_flops(machine, threads)) + memory_share * floats * sizeof(float) / core_bytes(machine, threads);
}

/* ---- gather -------------------------------------------------------------------------------------------------------- */

/* Bytes of one layer as the whole grid holds it. */
static double layer_bytes(const bw_job *job, int layer)
{
    const bw_grid whole = {.nprow = 1, .npcol = 1};
    double bytes = 0;
    for (int target = 0; target < BW_TARGETS; target++) {
        const bw_matrix piece = bw_store_piece_outline(job->source, &whole, job->config, layer, (bw_target)target);
        bytes += (double)bw_matrix_bytes(&piece);
    }
    return bytes;
}

/* The share of anything gathered that comes from other nodes. */
static double foreign_share(const bw_grid *grid)
{
    return (double)bw_gather_foreign(grid) / ((double)grid->nprow * grid->npcol);
}

/* Two slots hold the last two layers when the pass turns, so a pass forward and backward gathers all layers but two, twice. */
static double gathers_of_round(const bw_spec *spec)
{
    return spec->n_layer > 2 ? 2.0 * (spec->n_layer - 2) : 0;
}

static double factor_bytes(const bw_adapter *adapter)
{
    return (double)bw_adapter_parameters(adapter) * sizeof(float);
}

double bw_gathered_bytes(const bw_job *job, const bw_layout *layout, const bw_adapter *adapter, int64_t rounds)
{
    const double share = foreign_share(&layout->grid);
    const double weights = layout->streams ? (double)rounds * gathers_of_round(job->spec) * layer_bytes(job, 0) : 0;
    return share * (weights + factor_bytes(adapter));
}

/* Bytes over a node's network; each of its ranks receives its part in a message a matrix. */
static double network_seconds(const bw_machine *machine, const bw_grid *grid, double bytes, int messages)
{
    const double share = foreign_share(grid);
    return share > 0 ? share * bytes / (machine->network_gbs * 1e9) + messages * machine->network_us * 1e-6 : 0;
}

/* A piece is read, and its copy written, which costs a read of the line before it (in fp32; a copy in bf16 is half of that, but packed once more); a
 * folded adapter adds 2 r operations an entry at the rate of thin products. All threads of all ranks of the node take part. */
static double unpack_seconds(const bw_job *job, const bw_machine *machine, const bw_layout *layout)
{
    const int ranks = layout->grid.node_size, threads = layout->threads;
    const double dense = (double)bw_store_layer_bytes(job->spec), pieces = layer_bytes(job, 0);
    double folded = 0;
    for (int target = 0; job->folds && target < BW_TARGETS; target++) {
        int64_t out, in;
        bw_spec_shape(job->spec, (bw_target)target, &out, &in);
        folded += job->targets >> target & 1 ? 2.0 * (double)job->config->lora_r * (double)out * (double)in : 0;
    }
    return (pieces + 2 * dense) / (ranks * rank_bytes(machine, &layout->grid, threads)) +
           folded / (core_flops(machine, ranks * threads) * lora_share);
}

typedef struct gather_times {
    double all, exposed;
} gather_times;

/* A layer is on its way while the one before it computes; the backward pass takes twice as long as the forward pass. Unpacking comes when it is
 * asked for, and nothing hides it. */
static gather_times gather_of_round(const bw_job *job, const bw_machine *machine, const bw_layout *layout, double compute)
{
    if (!layout->streams)
        return (gather_times){0};
    const double wire = network_seconds(machine, &layout->grid, layer_bytes(job, 0), BW_TARGETS), unpack = unpack_seconds(job, machine, layout);
    const double layers = gathers_of_round(job->spec) / 2, forward = compute / 3 / job->spec->n_layer;
    return (gather_times){.all = 2 * layers * (wire + unpack), .exposed = layers * (2 * unpack + fmax0(wire - forward) + fmax0(wire - 2 * forward))};
}

/* ---- allreduce ------------------------------------------------------------------------------------------------------ */

/* Ring (Patarasuk and Yuan 2009): 2 (n-1) steps, each of a latency and an n-th of the bytes. Ranks are in the order of nodes, so a node's network
 * carries each step once; inside a node every rank copies into shared memory, reads and adds, four touches of each byte. */
double bw_allreduce_seconds(const bw_machine *machine, const bw_grid *grid, double bytes, int parts)
{
    const double n = grid->size, steps = 2 * (n - 1);
    if (grid->size < 2 || parts < 1)
        return 0;
    const double inside = machine->memory_gbs * 1e9 / (4.0 * grid->node_size), between = machine->network_gbs * 1e9;
    const double rate = grid->nodes > 1 ? fmin(inside, between) : inside;
    const double latency = grid->nodes > 1 ? machine->network_us * 1e-6 : node_latency;
    return steps * (parts * latency + bytes / n / rate);
}

/* A layer's bucket leaves when its gradient is there, in the backward pass of the last round: the last bucket has nothing to hide behind. */
static double exposed_reduce(double all, double last_compute, int n_layer)
{
    return fmax(all / n_layer, fmax0(all - last_compute * 2 / 3));
}

/* ---- update --------------------------------------------------------------------------------------------------------- */

/* Each micro-batch's gradient is searched for its largest and added to 64-bit sums (24 bytes a parameter), by one thread. */
static double adding_seconds(const bw_machine *machine, const bw_grid *grid, const bw_adapter *adapter)
{
    return 24 * (double)bw_adapter_parameters(adapter) / rank_bytes(machine, grid, 1);
}

/* Each rank clears all sums, reads them for the norm and once more for the next exponents (24 bytes a parameter), updates the entries it owns
 * (40 bytes), and the factors are gathered again. A step agrees on its outcome in about eight small collectives. */
static double update_seconds(const bw_machine *machine, const bw_layout *layout, const bw_adapter *adapter)
{
    const bw_grid *grid = &layout->grid;
    const double parameters = (double)bw_adapter_parameters(adapter), owned = parameters / ((double)grid->nprow * grid->npcol);
    const double one_core = rank_bytes(machine, grid, 1), factors = factor_bytes(adapter);
    const double passes = (24 * parameters + 40 * owned) / one_core + 3 * factors / (one_core * grid->node_size);
    const double latency = grid->nodes > 1 ? machine->network_us * 1e-6 : node_latency;
    return passes + network_seconds(machine, grid, factors, 2 * BW_TARGETS) + 8 * latency * ceil(log2(grid->size));
}

/* ---- a step --------------------------------------------------------------------------------------------------------- */
enum { MOST_STEPS = 8 }; /* of which the mean is taken */

typedef struct stepper {
    const bw_job *job;
    const bw_machine *machine;
    const bw_layout *layout;
    const bw_adapter *adapter;
    bw_plan plan;
    int64_t *samples;
    int32_t *group;         /* of each sample of the step */
    int64_t *order, *first; /* samples by group: those of group g are order[first[g]] .. order[first[g + 1] - 1] */
    bw_batch batch;         /* only T, answers and offsets are filled */
    double *seconds;        /* of each micro-batch */
} stepper;

static void sort_by_group(stepper *s, int64_t count)
{
    const int64_t groups = s->plan.micro_batches;
    memset(s->first, 0, sizeof *s->first * (size_t)(groups + 1));
    for (int64_t i = 0; i < count; i++)
        s->first[s->group[i] + 1]++;
    for (int64_t g = 0; g < groups; g++)
        s->first[g + 1] += s->first[g];
    for (int64_t i = count - 1; i >= 0; i--) /* fills each group from its end, which then is its beginning */
        s->order[--s->first[s->group[i] + 1]] = s->samples[i];
    memmove(s->first, s->first + 1, sizeof *s->first * (size_t)groups);
    s->first[groups] = count;
}

static void fill_lengths(stepper *s, int64_t which)
{
    s->batch.T = s->batch.answers = 0;
    s->batch.n_seq = 0;
    for (int64_t i = s->first[which]; i < s->first[which + 1]; i++) {
        const bw_sample *sample = &s->job->data.samples[s->order[i]];
        s->batch.T += sample->length;
        s->batch.answers += sample->length - (sample->prompt_length > 0 ? sample->prompt_length : 1);
        s->batch.offsets[++s->batch.n_seq] = (int32_t)s->batch.T;
    }
}

/* Seconds of the micro-batch that a rank takes in a round, 0 for none. */
static double seconds_of(const stepper *s, int64_t round, int rank)
{
    const int64_t which = bw_plan_deal(&s->plan, round, rank, s->layout->grid.size);
    return which < s->plan.micro_batches ? s->seconds[which] : 0;
}

/* Streamed weights keep all in step: in every round the slowest is waited for. */
static double add_rounds(const stepper *s, int64_t rounds, bw_times *times)
{
    double slowest = 0;
    for (int64_t round = 0; round < rounds; round++) {
        slowest = 0;
        for (int rank = 0; rank < s->layout->grid.size; rank++)
            slowest = fmax(slowest, seconds_of(s, round, rank));
        const gather_times gather = gather_of_round(s->job, s->machine, s->layout, slowest);
        times->compute += s->layout->streams ? slowest : 0;
        times->gather += gather.all;
        times->exposed_gather += gather.exposed;
    }
    return slowest;
}

static void add_work(stepper *s, bw_times *times)
{
    const int n = s->layout->grid.size;
    const int64_t rounds = (s->plan.micro_batches + n - 1) / n;
    double most = 0;
    for (int rank = 0; rank < n; rank++) {
        double mine = 0;
        for (int64_t round = 0; round < rounds; round++)
            mine += seconds_of(s, round, rank);
        most = fmax(most, mine);
        times->useful += mine / (double)n;
    }
    const double last = add_rounds(s, rounds, times);
    times->compute += s->layout->streams ? 0 : most; /* resident ones: only the sum at the end of the step is waited for */
    times->exposed_reduce += exposed_reduce(times->reduce, last, s->job->spec->n_layer);
}

static int add_step(stepper *s, int64_t step, bw_times *times)
{
    const int64_t count = bw_plan_step(&s->plan, step, s->samples);
    if (count < 0)
        return BW_SYSTEM;
    BW_TRY(bw_plan_cut(&s->plan, &s->job->data, s->samples, count, s->group));
    sort_by_group(s, count);
    for (int64_t which = 0; which < s->plan.micro_batches; which++) {
        fill_lengths(s, which);
        s->seconds[which] = bw_compute_seconds(s->machine, s->layout->threads, s->job->spec, s->adapter, &s->batch, s->job->config);
        if (s->batch.T > 0)
            s->seconds[which] += adding_seconds(s->machine, &s->layout->grid, s->adapter);
        times->tokens += (double)s->batch.T;
        times->flops += bw_transformer_flops(s->job->spec, s->adapter, &s->batch, true);
    }
    add_work(s, times);
    return BW_OK;
}

static void take_means(bw_times *times, int64_t steps)
{
    double *const sums[] = {&times->compute, &times->useful,         &times->gather, &times->exposed_gather,
                            &times->tokens,  &times->exposed_reduce, &times->flops};
    for (size_t i = 0; i < sizeof sums / sizeof *sums; i++)
        *sums[i] /= (double)steps;
    times->step = times->compute + times->exposed_gather + times->exposed_reduce + times->update;
}

static int stepper_create(stepper *s, int64_t micro_batches)
{
    const bw_config *config = s->job->config;
    s->plan = (bw_plan){.samples = s->job->data.count, .batch = config->batch, .micro_batches = micro_batches, .seed = (uint64_t)config->seed};
    BW_TRY(BW_NEW(s->samples, config->batch, "plan"));
    BW_TRY(BW_NEW(s->group, config->batch, "plan"));
    BW_TRY(BW_NEW(s->order, config->batch, "plan"));
    BW_TRY(BW_NEW(s->first, micro_batches + 1, "plan"));
    BW_TRY(BW_NEW(s->seconds, micro_batches, "plan"));
    return BW_NEW(s->batch.offsets, config->batch + 1, "plan");
}

static void stepper_free(stepper *s)
{
    void *owned[] = {s->samples, s->group, s->order, s->first, s->seconds, s->batch.offsets};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        bw_free(owned[i]);
}

int bw_times_plan(bw_times *times, const bw_job *job, const bw_machine *machine, const bw_layout *layout, int64_t micro_batches)
{
    const bw_grid *grid = &layout->grid;
    const int64_t rounds = (micro_batches + grid->size - 1) / grid->size;
    stepper s = {.job = job, .machine = machine, .layout = layout};
    bw_adapter *adapter = NULL;
    int64_t steps;
    int status;
    *times = (bw_times){0};
    BW_GO(stepper_create(&s, micro_batches));
    BW_GO(bw_adapter_outline(&adapter, grid, job->spec, job->targets, (int)job->config->lora_r, (int)job->config->block));
    s.adapter = adapter;
    const int64_t entries = bw_adapter_parameters(adapter);
    const int tensors = 2 * job->spec->n_layer * __builtin_popcount(job->targets);
    const double bytes = 8.0 * (double)bw_reduce_integers(tensors, entries);
    times->reduce = bw_allreduce_seconds(machine, grid, bytes, job->spec->n_layer);
    times->reduced_bytes = 2 * bytes * (grid->size - 1) / grid->size;
    times->update = update_seconds(machine, layout, adapter);
    times->gathered_bytes = bw_gathered_bytes(job, layout, adapter, rounds);
    steps = bw_plan_steps_per_epoch(&s.plan);
    steps = steps < MOST_STEPS ? steps : MOST_STEPS;
    for (int64_t step = 0; step < steps; step++)
        BW_GO(add_step(&s, step, times));
    take_means(times, steps);
done:
    stepper_free(&s);
    bw_adapter_free(&adapter);
    return status;
}
