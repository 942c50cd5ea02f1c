/* model/peft.h - what reading and writing a PEFT folder share. Private to model/. */
#ifndef BREAKWATER_MODEL_PEFT_H
#define BREAKWATER_MODEL_PEFT_H
#include "model/adapter.h"

enum { BW_PEFT_NAME = 128 };
#define BW_PEFT_CONFIG   "adapter_config.json"
#define BW_PEFT_WEIGHTS  "adapter_model.safetensors"
#define BW_PEFT_PICKLE   "adapter_model.bin"
#define BW_PEFT_ROLE     "breakwater.role"
#define BW_PEFT_TEMPLATE "breakwater.template"
#define BW_PEFT_BASE     "breakwater.model"
#define BW_PEFT_BUFFER   "breakwater.buffer"

/* "model.layers.3.self_attn.q_proj": what PEFT calls a module, and what the patterns of a configuration are matched with. */
void bw_peft_module(char name[BW_PEFT_NAME], int layer, bw_target target);
/* "base_model.model.<module>.lora_A.weight"; which is 'A' or 'B'. */
void bw_peft_tensor(char name[BW_PEFT_NAME], int layer, bw_target target, char which);
bool bw_peft_role_known(const char *role);
#endif
