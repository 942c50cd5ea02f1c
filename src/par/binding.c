/* binding.c - on which hosts and cores the ranks run: each host's first rank makes a line of its ranks, rank 0 of all hosts. */
#include <unistd.h>
#include "par/comms.h"

typedef struct meeting {
    MPI_Comm node, firsts;  /* the ranks of this host; the first ranks of all hosts */
    int rank, count, hosts; /* in `node`; of `node`; of `firsts`, 0 on other ranks */
    bw_binding *ranks;      /* [count] */
    bw_host_binding *all;   /* [hosts] */
} meeting;

static int open_meeting(meeting *m)
{
    BW_MPI(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, bw_par_rank(), MPI_INFO_NULL, &m->node));
    BW_MPI(MPI_Comm_rank(m->node, &m->rank));
    BW_MPI(MPI_Comm_size(m->node, &m->count));
    BW_MPI(MPI_Comm_split(MPI_COMM_WORLD, m->rank == 0 ? 0 : MPI_UNDEFINED, bw_par_rank(), &m->firsts));
    if (m->firsts != MPI_COMM_NULL)
        BW_MPI(MPI_Comm_size(m->firsts, &m->hosts));
    BW_TRY(BW_NEW(m->ranks, m->count, "binding"));
    return BW_NEW(m->all, m->hosts, "binding");
}

static void close_meeting(meeting *m)
{
    if (m->firsts != MPI_COMM_NULL)
        MPI_Comm_free(&m->firsts);
    if (m->node != MPI_COMM_NULL)
        MPI_Comm_free(&m->node);
    bw_free(m->ranks);
    bw_free(m->all);
}

/* A host that cannot make its line still meets the others. */
static int collect(meeting *m, const bw_binding *mine)
{
    bw_host_binding host = {0};
    char name[sizeof host.name] = "";
    BW_MPI(MPI_Gather(mine, sizeof *mine, MPI_BYTE, m->ranks, sizeof *mine, MPI_BYTE, 0, m->node));
    if (m->rank != 0)
        return BW_OK;
    gethostname(name, sizeof name - 1);
    int status = bw_binding_of_host(&host, name, m->ranks, m->count);
    BW_MPI(MPI_Gather(&host, sizeof host, MPI_BYTE, m->all, sizeof host, MPI_BYTE, 0, m->firsts));
    return status;
}

static int say(const meeting *m)
{
    bw_text lines = {0}, warning = {0};
    int status = bw_binding_report(m->all, m->hosts, &lines, &warning);
    if (status == BW_OK)
        bw_info("%s", lines.data);
    if (status == BW_OK && warning.length)
        bw_warn("%s", warning.data);
    bw_text_free(&lines);
    bw_text_free(&warning);
    return status;
}

int bw_par_binding(const bw_binding *mine)
{
    meeting m = {.node = MPI_COMM_NULL, .firsts = MPI_COMM_NULL};
    int status;
    BW_GO(bw_agree_on(MPI_COMM_WORLD, open_meeting(&m)));
    BW_GO(bw_agree_on(MPI_COMM_WORLD, collect(&m, mine)));
    BW_GO(bw_agree_on(MPI_COMM_WORLD, bw_par_rank() == 0 ? say(&m) : BW_OK));
done:
    close_meeting(&m);
    return status;
}
